"""What a run is scored on, one benchmark a file."""
