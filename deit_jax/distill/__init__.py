"""Knowledge distillation: the teacher that runs beside the student, and the recorded one."""

from deit_jax.distill.store import Header, Rows, Store, Writer, read_header
from deit_jax.distill.summary import expand, kept_logits, summarize
from deit_jax.distill.teacher import Teacher

__all__ = ["Header", "Rows", "Store", "Teacher", "Writer", "expand", "kept_logits", "read_header", "summarize"]
