"""And then? What comes after the last mask: recalibration, removal with its check, files, exports, measured speed."""
