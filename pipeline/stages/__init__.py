"""The stages of a run and how Ray Data connects them."""
