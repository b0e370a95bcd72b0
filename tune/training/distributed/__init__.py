"""Many processes as one: joined, sharded, their gradients added up."""
