"""What ours is measured against: ops, attack loops, and RoLI's public recipe."""
