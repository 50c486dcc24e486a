"""KDIGA on ImageNet: an adversarially trained ResNet-50 that was published teaches a small student.

Source: KDIGA (Shao et al. 2021, arXiv 2110.12072): robust teachers, ResNet and ViT students,
small radii. The argument names the student:

  resnet18  imagenet_resnet-18, 90 epochs     vit  ViT-S/16, whose attention aligns as well

  python -m rkd_jax.main --config configs/imagenet_kdiga.py:resnet18 \\
    --config.data.data_dir=DIR --config.teacher.checkpoint=FILE

DIR/imagenet has a sub-folder of images for each class, FILE is a robust ResNet-50's weights under
torchvision's names, expected where the run is started; its radius is 4/255. The alignment is made
on every second batch (`every`). Cost and result: not measured yet.
"""

from rkd_jax import config as base
from rkd_jax.config import Config
from rkd_jax.errors import UserError, nearest

STUDENTS = {"resnet18": "imagenet_resnet-18", "vit": "vit-384"}
EPS = 4 / 255


def get_config(arg: str | None = None) -> Config:
  """`arg`: one of `STUDENTS`."""
  student = arg or "resnet18"
  if student not in STUDENTS:
    raise UserError(f"No student is called {arg!r}. {nearest(student, STUDENTS)}")
  config = base.default()
  config.data.update({"name": "folder:imagenet", "size": 224, "memory_mib": 0})
  config.seeds = (0,)
  config.backdoor, config.contamination, config.labels = "unknown", 0.0, 1.0
  config.teacher.network, config.teacher.checkpoint = "imagenet_resnet-50", "resnet50_linf_eps4.pth"
  config.student.network = STUDENTS[student]
  for section in (config.teacher, config.student, config.labelled):
    section.update({"epochs": 90, "batch_size": 1024})
    section.augment.update({"resized_crop": 0.08, "flip": True})
  config.method.kdiga.update({"eps": EPS, "every": 2})
  config.methods = ("kd", "kdiga")
  config.eval.adversarial.update({"eps": (1 / 255, 2 / 255, EPS), "images": 1000})
  return config
