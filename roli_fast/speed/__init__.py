"""How fast our attacks and those of other libraries are, measured side by side on this machine."""
