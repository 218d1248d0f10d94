from model_zoo.TF4CTR_PNN.TF4CTR_PNN import TF4CTR_PNN

__all__ = ["TF4CTR_PNN"]
