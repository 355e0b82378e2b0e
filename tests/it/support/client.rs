//! A raw HTTP/1 client: sends bytes as they are, reads answers as they come.
