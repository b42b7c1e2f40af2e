"""What tests share: no test imports a test."""
