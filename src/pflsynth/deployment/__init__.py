"""A federation across machines: the coordinator and the sites as separate processes, connected by Flower."""
