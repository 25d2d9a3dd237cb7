"""Image quality of personalised models, per subject, site and task."""
