"""The federated core: what is shared, how a site trains, how updates are averaged, how rounds follow each other."""
