"""An organisation's node: it answers a link's orders beside its own data, and never runs what a coordinator ships."""
