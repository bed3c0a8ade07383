"""Lets clients use accounts without their credentials. So far it decides; nothing in it listens."""
