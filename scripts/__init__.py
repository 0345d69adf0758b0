"""What developers and operators run beside the program; imports the app, is imported by nothing."""
