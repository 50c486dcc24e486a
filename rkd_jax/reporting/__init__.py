"""What a run leaves behind: results.json, metrics.jsonl, TensorBoard, report.html."""
