"""What runs inside a job: the controller, its ranks, and what follows when it had to stop."""
