"""What other libraries' classes take in. A file goes by the name of its library, and asks for it where it is used."""
