"""Where samples come from: labelled files, REFER, drawn scenes; and what is done to them."""
