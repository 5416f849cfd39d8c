"""From a description to React code: the modules behind describe_to_react.py."""
