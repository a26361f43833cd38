"""How the demo checkpoint was trained."""
