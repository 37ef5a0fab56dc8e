"""What the workbench adds to JupyterLab: quick kernel sockets, saved widget state, the `%wb` magic."""
