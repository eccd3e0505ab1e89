"""What the words on a page mean, one sentence each, for readers new to the field."""

KNN = "An image gets the class of its most similar training images; nothing is fitted."
LINEAR = "One linear layer is fitted on the frozen features: the usual test of what they hold."
BASELINES = (
    "The same probe judges the learned features, the data as they are, and the encoder before "
    "training; training pays where the first is the best."
)
ONLINE = (
    "The online linear probe has one fixed regularisation (monitor.linear); that of the result is "
    "chosen on a hold-out of train."
)
STD = (
    "How far apart the {} of different images lie: 0 if all are the same, 1 if they spread evenly "
    "in all directions."
)

# By the name of the metric.
OF_METRICS = {
    "loss": "What training lowers. Losses of different methods cannot be compared.",
    "momentum": "Share of the old target network that each step keeps.",
    "gradient_norm": "Length of the gradient of all parameters; jumps mean an unstable training.",
    "feature_std_ratio": STD.format("features"),
    "effective_rank": (
        "How many directions the features use, effectively (RankMe): 1 if all lie on a line, at "
        "most their width."
    ),
    "embedding_std": STD.format("embeddings")
    + " Embeddings are what the loss sees, behind the projector.",
    "embedding_rank": "How many directions the embeddings use, weighted by their variance.",
    "positive_similarity": "Mean cosine of two views of the same image; 1 if they are alike.",
    "negative_similarity": "Mean cosine of two different images.",
    "projection_similarity": "Mean cosine of the prediction and its target; 1 if they are alike.",
    "contrastive_accuracy": "How often a view is most similar to the other view of its image.",
    "agreement": "How often two views of an image are given to the same cluster.",
    "alignment": "Mean squared distance of two views of an image, of unit length: 0 to 4.",
    "uniformity": (
        "How evenly the features cover the unit sphere: the log of a mean Gaussian potential; "
        "lower is more even."
    ),
    "tolerance": "Mean cosine of two images of a class.",
    "teacher_entropy": "How undecided the teacher is between outputs; 0 if it always picks one.",
    "student_entropy": "How undecided the student is between outputs; 0 if it always picks one.",
    "teacher_student_kl": "How far the student's answer is from the teacher's; 0 if they agree.",
    "prototypes_used": "Prototypes that images are given to; few of them are a collapse.",
    "accuracy": "How often the network solves the task that it is trained on.",
    "explained": (
        "Share of the variance within hidden patches that is explained: 1 if every pixel is "
        "right, 0 if it is no better than the mean of the patch."
    ),
    "invariance": "The part of the loss that makes two views of an image alike.",
    "redundancy": "The part of the loss that keeps the directions of the embedding independent.",
    "variance": "The part of the loss that keeps different images apart.",
    "covariance": "The part of the loss that keeps the directions of the embedding independent.",
    "knn_top1": KNN,
    "linear_top1": LINEAR,
}
SPECTRUM = (
    "How much the features vary along each of their directions, the strongest first. A curve that "
    "falls off early means that few directions are used."
)
EMBEDDING = (
    "Near on the map means similar features. t-SNE keeps neighbours together, its distances and "
    "sizes mean nothing. PCA shows the two directions of the largest variance on one scale, and "
    "beside its name their shares of the variance."
)
COSINE = "The cosine is 1 for features of the same direction, 0 for unrelated ones."
