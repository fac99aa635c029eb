"""What single neurons do: each one's exact effect, among matched controls and against zero."""
