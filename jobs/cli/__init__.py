"""The command line that all jobs share: options, files, Ray and the `PipelineConfig`."""
