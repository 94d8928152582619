"""The commands of `cidm`: each module adds its arguments and runs with what was given."""
