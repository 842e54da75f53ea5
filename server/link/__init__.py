"""The link: Flower's SuperLink behind two gates, one for the organisations and one for the coordinator's own runner."""
