"""One HTTP ingress, and behind it one application for each task."""
