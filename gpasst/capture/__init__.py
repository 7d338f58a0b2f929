"""Records of what crossed the guest's interface: capture files as bytes, the latest frames, and tables; pure."""
