"""Kill parts of a cluster at random while it works, and check that what comes out is what an undisturbed one gives."""
