"""The ground that PatchDCT and AIRM stand on: files, configs, checkpoints, training, evaluation, drawing."""
