"""Text and chats to token ids: what `librarian tokenize` is made of. Needs the extra [tokenize]."""
