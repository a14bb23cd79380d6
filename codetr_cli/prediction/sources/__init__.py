"""Where images come from besides files and folders: lists, archives, and addresses of object stores and servers."""
