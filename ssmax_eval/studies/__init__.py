"""What combines trainings and runs into one answer."""
