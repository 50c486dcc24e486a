"""Looking for backdoors in a network whose trigger nobody knows."""
