"""Models on the Hugging Face hub: fetched whole and verified, sent with a card that says what they are.

The command line reads the short names at every start, so nothing is imported here, and huggingface_hub only once
something is asked of the hub.
"""
