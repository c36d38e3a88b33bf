"""CRD, from its equations: scores, Z, noise-contrastive estimation, banks."""

import numpy as np


def normalized(x):
    x = np.asarray(x, "float64")
    return np.array([row / np.sqrt((row**2).sum()) if row.any() else row for row in x])


def exponentials(bank, vectors, candidates, temperature):
    """`o = exp(<m_j, v_i> / T)`."""
    bank, vectors = (np.asarray(x, "float64") for x in (bank, vectors))
    return np.array(
        [
            [np.exp((bank[j] * vector).sum() / temperature) for j in row]
            for vector, row in zip(vectors, candidates)
        ]
    )


def normalizer(o, samples):
    return o.mean() * samples


def nce(o, z, samples, epsilon=1e-7):
    """One value a sample; the first column is the positive."""
    values = []
    for row in o / z:
        noise = (len(row) - 1) / samples
        value = np.log(row[0] / (row[0] + noise + epsilon))
        value += sum(np.log(noise / (p + noise + epsilon)) for p in row[1:])
        values.append(-value)
    return np.array(values)


class Training:
    """The loss over several batches.

    Args:
        teacher_embedding, student_embedding: `(kernel, bias)`.
        teacher_bank, student_bank: `(samples, dimension)`.
    """

    def __init__(
        self,
        teacher_embedding,
        student_embedding,
        teacher_bank,
        student_bank,
        temperature=0.07,
        momentum=0.5,
    ):
        self.embeddings = teacher_embedding, student_embedding
        self.banks = [np.array(bank, "float64") for bank in (teacher_bank, student_bank)]
        self.temperature = temperature
        self.momentum = momentum
        self.z = None

    def values(self, teacher, student, candidates):
        """`(values, o)` of a batch: the student against the teacher's bank, and the reverse."""
        samples = len(self.banks[0])
        of_teacher, of_student = (
            normalized(np.asarray(x, "float64") @ kernel + bias)
            for x, (kernel, bias) in zip((teacher, student), self.embeddings)
        )
        o = [
            exponentials(bank, vectors, candidates, self.temperature)
            for bank, vectors in zip(self.banks, (of_student, of_teacher))
        ]
        z = [normalizer(own, samples) for own in o] if self.z is None else self.z
        return sum(nce(own, one, samples) for own, one in zip(o, z)), z, (of_teacher, of_student)

    def step(self, teacher, student, ids, candidates):
        values, self.z, vectors = self.values(teacher, student, candidates)
        for bank, own in zip(self.banks, vectors):
            bank[ids] = normalized(self.momentum * bank[ids] + (1 - self.momentum) * own)
        return values
