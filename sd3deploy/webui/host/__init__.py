"""What is read from SD.Next and asked of it: the adapter, the patches and the points at which the host asks us."""
