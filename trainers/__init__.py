"""The papers' experiments: absl flags and one screen of recipe each."""
