"""Programs that show gatedrnn at work."""
