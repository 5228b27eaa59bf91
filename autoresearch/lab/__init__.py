"""The three files of a lab: where they lie, what they may say, what a change may be."""
