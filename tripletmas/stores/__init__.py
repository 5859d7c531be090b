"""Stores: galleries that live in an engine of the user's, behind one protocol; which model made their vectors, and how
they get vectors of another model beside the old ones."""
