"""Quality control: what is wrong, or looks wrong, with a site's images."""
