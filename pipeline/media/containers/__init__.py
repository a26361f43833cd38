"""Containers: opening one safely, its packets on one time line, and how its pictures are cut."""
