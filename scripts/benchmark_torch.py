"""The peers in PyTorch: plain loops of KD, DML and DLB, written for this benchmark.

The nets are those of `keras_distill.backbones.resnet` written with `torch.nn`, in the default
memory format and in channels-last, on a GPU where PyTorch sees one. Under a policy of mixed
bfloat16 the forwards run under autocast.

- KD: a frozen teacher in evaluation mode without gradients, cross-entropy 0.1, KL 0.9 at T = 4.
- DML: two students, one forward of each a step, cross-entropy and KL to the other's constant
  probabilities, an SGD for each.
- DLB: half of a batch is the half before it; its KL at T = 3 to the logits of the step before.
"""

import contextlib

import torch
from torch import nn
from torch.nn import functional

RATE = 0.01
FORMATS = {"": torch.contiguous_format, ", channels-last": torch.channels_last}


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


class Peer:
    """What the loops share: device, memory format, data.

    Args:
        settings: The `Settings` of the benchmark.
        count: Images of an epoch, random ones as the other cases have.
        memory_format: A key of `FORMATS`.
    """

    def __init__(self, settings, count, memory_format):
        self.settings = settings
        self.format = FORMATS[memory_format]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.x = self.placed(torch.randn(count, 3, 32, 32))
        self.y = torch.randint(10, (count,)).to(self.device)

    def placed(self, x):
        return x.to(self.device).contiguous(memory_format=self.format)

    def network(self, depth):
        return resnet(depth).to(self.device, memory_format=self.format)

    def optimizer(self, network):
        return torch.optim.SGD(network.parameters(), lr=RATE)

    def lowered(self):
        """The precision of the forwards."""
        if self.settings.dtype != "mixed_bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def batches(self):
        size = self.settings.batch_size
        return list(zip(self.x.split(size), self.y.split(size)))


def divergence(target, logits, temperature):
    """KL of softened logits, times the squared temperature, the mean over the batch."""
    target = functional.softmax(target.float() / temperature, 1)
    own = functional.log_softmax(logits.float() / temperature, 1)
    return functional.kl_div(own, target, reduction="batchmean") * temperature**2


def update(optimizer, loss):
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def kd(settings, count, memory_format):
    """A function that distils for an epoch; its last line waits for the device."""
    peer = Peer(settings, count, memory_format)
    teacher = peer.network(settings.teacher_depth).eval()
    student = peer.network(settings.student_depth).train()
    optimizer, batches = peer.optimizer(student), peer.batches()

    def run():
        for x, y in batches:
            with peer.lowered():
                with torch.no_grad():
                    target = teacher(x)
                logits = student(x)
            loss = 0.1 * functional.cross_entropy(logits.float(), y)
            loss = loss + 0.9 * divergence(target, logits, 4.0)
            update(optimizer, loss)
        return loss.item()

    return run


def dml(settings, count, memory_format):
    """A function that trains two students together for an epoch."""
    peer = Peer(settings, count, memory_format)
    students = [peer.network(settings.student_depth).train() for _ in range(2)]
    optimizers, batches = [peer.optimizer(student) for student in students], peer.batches()

    def run():
        for x, y in batches:
            with peer.lowered():
                both = [student(x) for student in students]
            for i, optimizer in enumerate(optimizers):
                loss = functional.cross_entropy(both[i].float(), y)
                update(optimizer, loss + divergence(both[1 - i].detach(), both[i], 1.0))
        return loss.item()

    return run


def dlb(settings, count, memory_format):
    """A function that trains for an epoch of shuffled halves, each forwarded twice but the last."""
    peer = Peer(settings, count, memory_format)
    student = peer.network(settings.student_depth).train()
    optimizer, half = peer.optimizer(student), settings.batch_size // 2

    def run():
        kept = None
        for order in torch.randperm(len(peer.x), device=peer.device).split(half):
            new = peer.placed(peer.x[order]), peer.y[order]
            if kept is None:
                x, y = new
            else:
                x, y = (torch.cat([last, now]) for last, now in zip(kept[:2], new))
            with peer.lowered():
                logits = student(peer.placed(x))
            loss = functional.cross_entropy(logits.float(), y)
            if kept is not None:
                loss = loss + divergence(kept[2], logits[:half], 3.0)
            update(optimizer, loss)
            kept = *new, logits[-half:].detach()
        return loss.item()

    return run


LOOPS = {"KD": kd, "DML": dml, "DLB": dlb}
