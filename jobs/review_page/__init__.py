"""The parts of `jobs.review`: rows and their sections, frames decoded again, the page."""
