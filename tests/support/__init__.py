"""Small working fakes and real servers that the tests share."""
