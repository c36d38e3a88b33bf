"""The same distillation as a plain PyTorch loop on the CPU, for `benchmark.py --torch`.

The nets are those of `keras_distill.backbones.resnet` written with `torch.nn`: a frozen teacher in
evaluation mode without gradients, the student's cross-entropy and the softened KL divergence,
SGD. In the default memory format and in channels-last.
"""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalization and a shortcut."""

    def __init__(self, incoming, width, stride):
        super().__init__()
        self.first = nn.Conv2d(incoming, width, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.shortcut = nn.Identity()
        if stride != 1 or incoming != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(incoming, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def resnet(depth, classes=10):
    """CIFAR ResNet of `depth` = 6 n + 2 layers, widths 16, 32, 64."""
    blocks, incoming = [], 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range((depth - 2) // 6):
            blocks.append(Block(incoming, width, stride if i == 0 else 1))
            incoming = width
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def epoch(teacher, student, optimizer, batches, temperature=4.0):
    student.train()
    for images, labels in batches:
        with torch.no_grad():
            target = functional.softmax(teacher(images) / temperature, 1)
        logits = student(images)
        soft = functional.log_softmax(logits / temperature, 1)
        distillation = functional.kl_div(soft, target, reduction="batchmean") * temperature**2
        loss = 0.1 * functional.cross_entropy(logits, labels) + 0.9 * distillation
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.item()


def variants(arguments, images, labels):
    """Runs of one epoch by name, on the arrays of `benchmark.py`."""
    runs = {}
    formats = {"": torch.contiguous_format, ", channels-last": torch.channels_last}
    for name, memory_format in formats.items():
        teacher = resnet(arguments.teacher_depth).eval().to(memory_format=memory_format)
        student = resnet(arguments.student_depth).to(memory_format=memory_format)
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        x = x.contiguous(memory_format=memory_format)
        y = torch.from_numpy(labels).long()
        size = arguments.batch_size
        batches = list(zip(x.split(size), y.split(size)))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
        runs[f"PyTorch loop{name}"] = lambda t=teacher, s=student, o=optimizer, b=batches: epoch(
            t, s, o, b
        )
    return runs
