"""How fast attacks are, ours and the peers', measured side by side on this machine."""
