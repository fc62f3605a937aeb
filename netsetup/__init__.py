"""What the network must be: frames, links, announcements. Knows nothing of qmigrate."""
