"""The demo corpus that rumpun writes itself."""
